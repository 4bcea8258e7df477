"""What happens to a walk while it is on its way."""


def during(action):
    """An observable that does something once, after some steps of a walk."""
    calls = []

    def norm(theta):
        calls.append(None)
        # It is tried before the walk begins.
        if len(calls) == 5:
            action()
        return float(theta.norm())

    return {"norm": norm}
