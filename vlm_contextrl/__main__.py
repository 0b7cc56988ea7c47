"""`python -m vlm_contextrl`: the command line, in the form that torchrun starts."""

from __future__ import annotations

from vlm_contextrl.cli import main

if __name__ == "__main__":
    main()
