"""The level set, and flows on it."""
