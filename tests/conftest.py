"""What all tests share: how hypothesis draws."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "gpurnn",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gpurnn")
