"""Shipped run configurations (installed as `vlm_contextrl.configs`)."""

if __name__ == "configs":
    raise ImportError(
        "import this package as vlm_contextrl.configs: a bare `import configs` would make a second copy of it"
    )
