"""SetFit on a few rows, as a process in an environment that has the `setfit` package: `python THIS JOB.json`.

The job has `model` (a folder), `max_length`, `train` and `test` (each with `texts` and `labels`), `seed` and
`max_steps` (-1: SetFit's own number, all pairs once). The last line printed is JSON: `accuracy` on test,
`seconds` of the training alone, `steps` and `version`. Everything else is SetFit's default: batches of 16
pairs, rate 2e-5, cosine similarity loss, then logistic regression. Nothing of featcache is imported.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def train(job: dict[str, Any], folder: str) -> dict[str, Any]:
    import setfit
    import torch
    from datasets import Dataset

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    rows = {name: Dataset.from_dict({"text": job[name]["texts"], "label": job[name]["labels"]})
            for name in ("train", "test")}  # fmt: skip
    model = setfit.SetFitModel.from_pretrained(job["model"], device="cpu", local_files_only=True)
    model.model_body.max_seq_length = job["max_length"]
    arguments = setfit.TrainingArguments(
        output_dir=folder, seed=job["seed"], max_steps=job["max_steps"], save_strategy="no",
        report_to="none", show_progress_bar=False,
    )  # fmt: skip
    trainer = setfit.Trainer(model=model, args=arguments, train_dataset=rows["train"])
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    found = [int(label) for label in model.predict(job["test"]["texts"], batch_size=32)]
    right = sum(one == other for one, other in zip(found, job["test"]["labels"], strict=True))
    return {
        "accuracy": right / len(found),
        "seconds": seconds,
        "steps": int(trainer.st_trainer.state.global_step),
        "version": setfit.__version__,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print("\n" + json.dumps(train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), made)))
