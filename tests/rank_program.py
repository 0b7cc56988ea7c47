"""Run by torchrun: gradients of a given update, each rank with its part, written by the first one.

Arguments: model folder, folders of questions and pairs, folder for the run, JSON of the sections of the configuration.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from tests.tiny_models import given_update, run_config
from vlm_contextrl.evaluation import HeldOut
from vlm_contextrl.ranks import Ranks
from vlm_contextrl.runlog import RunDirectory
from vlm_contextrl.sharding import whole
from vlm_contextrl.storage import read_pairs, read_questions
from vlm_contextrl.terms import Update
from vlm_contextrl.trainer import Trainer, load_for_training


def gradients_of_a_given_update(
    model: Path, rows: dict[str, Path], out: Path, sections: dict[str, object]
) -> None:
    """Write `out/gradients.safetensors` and `out/metrics.json`."""
    config = run_config(model, rows, **sections)
    ranks = Ranks.join()
    policy = load_for_training(config, ranks)
    run = RunDirectory(out / "run", config, resume=False, writes=ranks.is_first)
    questions, pairs = read_questions(rows["questions"]), read_pairs(rows["pairs"])
    held_out = HeldOut(config.data)
    trainer = Trainer(config, run, ranks, policy, questions, [0], pairs, [0], held_out)
    given = given_update(policy)
    update = Update(ranks.part(given.groups), ranks.part(given.pairs), given.order_seed, ranks.total)
    metrics = trainer.backward(update)
    found = {
        name: whole(p.grad).cpu().contiguous() for name, p in policy.named_parameters() if p.grad is not None
    }
    if ranks.is_first:
        save_file(found, out / "gradients.safetensors")
        (out / "metrics.json").write_text(json.dumps(metrics))
    ranks.leave()


if __name__ == "__main__":
    model, questions, pairs, out = map(Path, sys.argv[1:5])
    rows = {"questions": questions, "pairs": pairs}
    gradients_of_a_given_update(model, rows, out, json.loads(sys.argv[5]))
