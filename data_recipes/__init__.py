"""Recipes that build contrastive pairs (installed as `vlm_contextrl.data_recipes`)."""

if __name__ == "data_recipes":
    raise ImportError(
        "import this package as vlm_contextrl.data_recipes: a bare `import data_recipes` would make a second copy of it"
    )
