"""For `celery -A longshore.workers flower --conf=compose/flowerconfig.py`: Flower with the pages of runs.

`longshore flower` and the image use the same; this file is for a Flower of one's own.
"""

from longshore.workers.flower_pages.config import *  # noqa: F403 - Flower takes what this file holds
