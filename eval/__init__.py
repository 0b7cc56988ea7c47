"""Benchmarks and comparisons (installed as `vlm_contextrl.eval`)."""

if __name__ == "eval":
    raise ImportError(
        "import this package as vlm_contextrl.eval: a bare `import eval` would make a second copy of it"
    )
