"""Two rounds of everything, in seconds: a test that this machine runs fairjax.

.venv/bin/python scripts/train.py --config=configs/smoke.py --workdir=runs/smoke
"""

from configs import default


def get_config():
    """Breast cancer, 2 rounds."""
    return default.preset(default.get_config(), "smoke")
