"""Small review files whose labels a linear head can learn."""

from __future__ import annotations

import json
import random
from pathlib import Path


def write_reviews(folder: Path, rows: int = 60, seed: int = 0) -> dict[str, Path]:
    """`rows` train rows and a third of that in validation and test, as jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    files = {}
    for split, count in (("train", rows), ("validation", rows // 3), ("test", rows // 3)):
        lines = []
        for number in range(count):
            good = number % 2 == 0
            words = draw.choices("好喜欢干净便宜快" if good else "坏差失望慢贵", k=draw.randint(2, 12))
            text = "".join(words) + "".join(draw.choices("房间服务酒店电池书", k=draw.randint(1, 20)))
            lines.append(json.dumps({"text": text, "label": "good" if good else "bad"}, ensure_ascii=False))
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files
