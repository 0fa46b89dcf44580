"""What speaks Gymnasium."""


def register_envs() -> None:
    pass
