"""Write bmft/models/architectures.json: the signature of every classification network of torchvision and timm.

    python -m benchmarks.make_architecture_index

Two builds without memory per network; needs timm and half an hour. Run it when a library gains networks.
"""

import json
import logging
import warnings
from pathlib import Path

import timm
import torchvision

from bmft.errors import ArchitectureError
from bmft.models import index_entry

TARGET = Path(__file__).parents[1] / "bmft" / "models" / "architectures.json"
# Networks whose weights differ with an option that people do set.
VARIANTS = ("torchvision:googlenet,aux_logits=False", "torchvision:inception_v3,aux_logits=False")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.simplefilter("ignore")
    names = [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    heads: list[tuple[str, ...]] = []
    lines = []
    for arch in [*names, *VARIANTS, *(f"timm:{name}" for name in timm.list_models())]:
        try:
            entry = index_entry(arch)
        except (ArchitectureError, RuntimeError) as error:
            logging.info("left out: %s: %s", arch, error)
            continue
        if entry.head not in heads:
            heads.append(entry.head)
        row = [heads.index(entry.head), entry.signature, " ".join(entry.sketch)]
        lines.append(f"{json.dumps(arch)}: {json.dumps(row)}")
    made_with = {"torchvision": torchvision.__version__, "timm": timm.__version__}
    TARGET.write_text(
        f'{{"made_with": {json.dumps(made_with)},\n"heads": {json.dumps(heads)},\n"architectures": {{\n'
        + ",\n".join(lines)
        + "\n}}\n",
        encoding="utf-8",
    )
    logging.info("%d networks, %d bytes", len(lines), TARGET.stat().st_size)


if __name__ == "__main__":
    main()
