"""BERT-base shapes with random weights, and made-up Chinese reviews with the lengths of ChnSentiCorp.

python benchmarks/made_up.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from gpu import make_model, write_texts

SCALE = 0.05  # of the texts of `make gpu`

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_texts(folder, SCALE)
    make_model(folder)
