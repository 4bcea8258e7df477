"""What no problem can be made of is refused by its name, and what merely looks unusual is not."""

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.analysis.curvature.operators import tensor_subspace
from geoflow.errors import InputError
from geoflow.manifold.regularizers.named import bound

X, Y = references.small_data()
TOKENS = torch.arange(2 * len(X)).reshape(-1, 2) % 5


ENTROPY = nn.functional.cross_entropy


def of(module=None, loss_fn=ENTROPY, inputs=X, targets=Y, batch_size=None, **options):
    module = references.small_module() if module is None else module
    return gf.Problem.from_module(module, loss_fn, inputs, targets, batch_size, **options)


def batched(weight=24, batches=((X, Y),)):
    def batch_loss(module, batch):
        inputs, targets = batch
        return ENTROPY(module(inputs), targets, reduction="sum"), weight

    return gf.Problem.from_batches(references.small_module(), batch_loss, batches)


ITSELF = [X]
ITSELF.append(ITSELF)


def out_of_memory(outputs, targets):
    raise torch.OutOfMemoryError("CUDA out of memory")


def embedding(**options):
    return nn.Sequential(nn.Embedding(5, 2, **options), nn.Flatten(), nn.Linear(4, 2))


def failing(theta):
    raise ValueError("no such file")


NAMED = [{"x": X, "labels": Y, "ids": ["a"] * len(X)}]


def popping(module, batch):
    labels, _ = batch.pop("labels"), batch.pop("ids")
    return ENTROPY(module(batch.pop("x")), labels, reduction="sum"), len(labels)


def of_its_own(module, batch):
    return ENTROPY(module(X), Y, reduction="sum"), len(Y)


class Popping(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = references.small_module()

    def forward(self, named):
        return self.inner(named.pop("x"))


MASKED = np.ma.array(X.numpy(), mask=X.numpy() > 1)


def test_a_function_is_not_told_of_inputs_and_a_dtype_that_it_does_not_have():
    x, start = torch.randn(5, 3), torch.ones(3, dtype=torch.float64)
    message = r"in the dtype of θ \(theta.dtype, not .float\(\)\), or give theta0 in torch.float32$"
    with pytest.raises(InputError, match=message):
        gf.Problem.from_function(lambda theta: (x @ theta).square().mean(), start)
    with pytest.raises(InputError, match=r"or give theta0 in torch.float64$"):
        gf.Problem.from_function(lambda theta: (x.double() @ theta).mean(), start.float())
    flow = gf.LevelSet(of())
    with pytest.raises(InputError, match=r"or make the problem with dtype=torch.float32$"):
        gf.RegularizingFlow(flow, lambda theta: (torch.ones(len(theta)) @ theta).square())


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = references.small_module()

    def forward(self, x):
        return self.inner(x.double())


def test_nor_is_one_in_float32_told_to_take_float32():
    with pytest.raises(InputError, match=r"or give dtype=torch.float64$"):
        of(Doubling(), dtype=torch.float32)


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout1d, nn.AlphaDropout])
def test_a_layer_that_drops_nothing_is_not_random(layer):
    module = nn.Sequential(references.small_module(), layer(0.0))
    assert of(module).loss(of().theta0) == of().loss(of().theta0)
    with pytest.raises(InputError, match="in training mode"):
        of(nn.Sequential(references.small_module(), layer(0.1)))


@pytest.mark.parametrize("batch_size", [None, 7])
def test_there_need_be_no_targets(batch_size):
    def unsupervised(outputs, targets):
        assert targets is None
        return outputs.square().mean()

    problem = of(loss_fn=unsupervised, targets=None, batch_size=batch_size)
    dummy = of(loss_fn=lambda o, y: o.square().mean(), targets=torch.zeros(len(X)))
    assert float(problem.loss(problem.theta0)) == pytest.approx(
        float(dummy.loss(problem.theta0)), rel=1e-14
    )
    each = gf.each_example(problem)
    assert float(each.loss(each.theta0).mean()) == pytest.approx(
        float(problem.loss(problem.theta0)), rel=1e-13
    )
    with pytest.raises(InputError, match="they are no classes"):
        gf.by_class(problem)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gf.Problem.from_module(None, None, X, Y), "module=None is of type"),
        (lambda: of(lambda x: x), "module=<function .* is of type function; give a torch.nn.Mod"),
        (lambda: of(loss_fn=None), "loss_fn=None"),
        (lambda: gf.Problem.from_batches(None, None, []), "module=None is of type"),
        (lambda: gf.Problem.from_batches(nn.Linear(3, 2), None, []), "batch_loss=None"),
        (lambda: batched(batches=None), "batches=None is of type NoneType"),
        (lambda: batched(batches=5), "batches=5 is of type int"),
        (lambda: batched(batches=np.int64(3)), r"batches=np.int64.3.; give a list of batches"),
        (lambda: batched(batches=np.array(3)), r"batches=array.3.; give a list of batches"),
        (lambda: batched(batches=torch.tensor(3)), r"batches=tensor.3.; give a list of batches"),
        (lambda: batched(batches=ITSELF), "batches: a list or dict in it holds itself, or is"),
        (lambda: of(inputs=ITSELF), "inputs: a list or dict in it holds itself, or is nested"),
        (lambda: of(targets={"a": ITSELF}), "targets: a list or dict in it holds itself"),
        (lambda: of(parameters=np.array(3)), r"parameters=array.3.; give patterns of names"),
        (
            lambda: of(loss_fn=out_of_memory),
            "failed .CUDA out of memory.; free memory, or evaluate",
        ),
        (
            lambda: gf.RegularizingFlow(gf.LevelSet(of()), lambda t: out_of_memory(t, t)),
            r"regularizer: its first evaluation failed .CUDA out of memory.; free memory$",
        ),
        (lambda: gf.Problem.from_function(torch.sum, np.ones(3)), "theta0=.* is of type ndarray"),
        (lambda: gf.Problem.from_function(torch.sum, [1.0]), r"theta0=\[1.0\] is of type list"),
        (lambda: gf.Problem.from_function(None, torch.ones(3)), "loss=None is of type"),
        (lambda: gf.Problem.from_function(failing, torch.ones(3)), "evaluation failed .no such"),
        (lambda: of(batch_size="3"), "batch_size='3' is of type str"),
        (lambda: of(batch_size=[3]), r"batch_size=\[3\] is of type list"),
        (lambda: of(batch_size=2.5), "batch_size=2.5 is of type float"),
        (lambda: of(batch_size=True), "batch_size=True is of type bool"),
        (lambda: of(parameters=[]), "parameters is empty"),
        (lambda: of(parameters=3), "parameters=3 is of type int"),
        (lambda: of(parameters=[3]), "parameters=3 is of type int"),
        (lambda: of(embedding(sparse=True), inputs=TOKENS), r"0 \(Embedding\) has sparse=True"),
        (lambda: of(embedding(padding_idx=0), inputs=TOKENS), r"0 \(Embedding\) has padding_idx=0"),
        (lambda: of(nn.Linear(3, 2, device="meta")), "module: weight is on the device 'meta'"),
        (lambda: of(inputs=X.to("meta")), "inputs are on the device 'meta'"),
        (
            lambda: of(inputs=X.to_sparse()),
            "inputs are torch.sparse_coo, of which no examples can be taken; give .to_dense.., or",
        ),
        (
            lambda: batched(batches=[(torch.full((1,), torch.nan).to_sparse(), Y)]),
            r"batches\[0\]\[0\] have 1 non-finite values",
        ),
        (lambda: batched(batches=[(X.float().to_mkldnn(), Y)]), "torch._mkldnn; give .to_dense"),
        (lambda: batched(batches=[]), "batches: there is none; give one at least"),
        (lambda: of(inputs=MASKED), "inputs have masked values"),
        (lambda: batched(None), "the weight None; return a finite number"),
        (lambda: batched("3"), "the weight '3'"),
        (lambda: batched(10**400), "the weight 1000"),
        (lambda: batched(float("inf")), "the weight inf"),
        (lambda: batched(torch.tensor(torch.inf)), "the weight inf"),
        (lambda: batched(-1), "the weight -1"),
        (lambda: batched([24]), r"the weight \[24\]"),
        (lambda: batched(batches=[(X, Y), (X[:, :2], Y)]), "first evaluation failed .mat1"),
        (lambda: batched(batches=[(X, Y), {"a": X}]), "first evaluation failed"),
        (lambda: batched(batches=(X, Y)), "loss: "),
        (lambda: gf.Problem.from_function(lambda t: t.sum() + 0j, torch.ones(3)), "complex64"),
        (lambda: of(loss_fn=lambda out, y: ENTROPY(out, y) + 0j), "real scalar"),
    ],
)
def test_it_is_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: of(batch_size=np.int64(5)),
        lambda: of(parameters=("*",)),
        lambda: of(inputs=X.numpy().astype(">f8")),
        lambda: of(inputs=np.ma.array(X.numpy())),
        lambda: batched(torch.tensor(24)),
        lambda: batched(torch.tensor([24.0])),
        lambda: batched(np.float32(24)),
        lambda: batched(batches=[(X[:10], Y[:10]), (X[10:], Y[10:])], weight=12),
        lambda: gf.Problem.from_batches(references.small_module(), popping, NAMED),
        lambda: of(loss_fn=lambda o, t: ENTROPY(o, t.pop("labels")), targets={"labels": Y}),
        lambda: of(Popping(), inputs=({"x": X},), batch_size=7),
        lambda: gf.Problem.from_batches(references.small_module(), of_its_own, [None]),
        lambda: gf.Problem.from_batches(references.small_module(), of_its_own, [None, ()]),
    ],
)
def test_it_is_taken_and_the_loss_is_that_of_the_data(make):
    expected, problem = of(), make()
    value, gradient = problem.value_and_gradient(problem.theta0)
    assert value.shape == ()
    assert torch.allclose(value, expected.loss(expected.theta0), rtol=1e-13)
    assert torch.allclose(
        gradient, expected.value_and_gradient(expected.theta0)[1], rtol=1e-12, atol=1e-14
    )


def test_rows_that_do_not_move_may_be_padding_or_sparse():
    for options in ({"sparse": True}, {"padding_idx": 0}):
        assert of(embedding(**options), inputs=TOKENS, parameters="2.*").n_parameters == 10
    assert of(embedding(padding_idx=0), inputs=TOKENS.clamp(min=1)).n_parameters == 20


def test_batches_that_are_used_up_later_are_refused_when_they_are():
    class UsedUp:
        left = True

        def __iter__(self):
            return iter([(X, Y)] if self.left else [])

    batches = UsedUp()
    problem = batched(batches=batches)
    batches.left = False
    with pytest.raises(InputError, match="batches: this pass gave none"):
        problem.value_and_gradient(problem.theta0)


class Tied(nn.Module):
    """The output layer's weights are those of the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x).sum(1))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("head.*", ["embedding.weight", "head.bias"]),
        ("head.weight", ["embedding.weight"]),
        (["head.weight", "embedding.*"], ["embedding.weight"]),
        ("head.bias", ["head.bias"]),
    ],
)
def test_tied_parameters_go_by_each_of_their_names(patterns, names):
    problem = of(Tied(), inputs=TOKENS, targets=Y, parameters=patterns)
    assert [t.name for t in problem.tensors] == names
    whole = of(Tied(), inputs=TOKENS, targets=Y)
    theta = torch.arange(20.0, dtype=torch.float64)
    expected = sum(float((whole.unflatten(theta)[n] ** 2).sum()) for n in names)

    def loss(module, batch):
        return ENTROPY(module(batch[0]), batch[1], reduction="sum"), len(batch[1])

    for made in (whole, gf.Problem.from_batches(Tied(), loss, [(TOKENS, Y)])):
        found = bound(gf.regularizers.squared_norm(tensors=patterns), made)
        assert float(found.value_and_gradient(theta)[0]) == expected
    chosen = [patterns] if isinstance(patterns, str) else patterns
    if "*" not in "".join(chosen):
        size = sum(whole.unflatten(theta)[n].numel() for n in names)
        assert tensor_subspace(whole, chosen).size == size


@pytest.mark.parametrize("norm", [nn.InstanceNorm1d, nn.BatchNorm1d])
def test_a_norm_without_running_statistics_may_be_in_training_mode(norm):
    sequences = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
    first = norm(3, track_running_stats=False)
    module = nn.Sequential(first, nn.Flatten(), nn.Linear(12, 2)).train()
    problem = gf.Problem.from_module(module, ENTROPY, sequences, torch.arange(8) % 2)
    same = gf.Problem.from_module(module.eval(), ENTROPY, sequences, torch.arange(8) % 2)
    theta = problem.theta0 + 0.1
    assert torch.equal(problem.loss(theta), same.loss(theta))
    with pytest.raises(InputError, match="in training mode"):
        of(norm(3, affine=True, track_running_stats=True), inputs=sequences, targets=sequences)


class Tying(nn.Module):
    """Two layers of one weight, which is a buffer too or is tied at every call."""

    def __init__(self, *, lazily):
        super().__init__()
        self.a, self.b, self.lazily = nn.Linear(3, 3), nn.Linear(3, 3), lazily
        if not lazily:
            self.register_buffer("kept", self.a.weight)

    def forward(self, x):
        if self.lazily:
            self.b.weight = self.a.weight
            return self.b(self.a(x))
        return self.b(self.a(x)) @ self.kept


@pytest.mark.parametrize(
    ("lazily", "said"),
    [(True, "tie them once, where the module is made"), (False, "beside its parameters")],
)
def test_a_tie_that_theta_cannot_follow_is_refused(lazily, said):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=said):
        gf.Problem.from_module(Tying(lazily=lazily), nn.functional.mse_loss, x, x)
