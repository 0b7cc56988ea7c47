"""Browser app to inspect pairs (installed as `vlm_contextrl.app`)."""

if __name__ == "app":
    raise ImportError(
        "import this package as vlm_contextrl.app: a bare `import app` would make a second copy of it"
    )
