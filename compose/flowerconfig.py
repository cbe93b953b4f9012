"""Configuration of `celery -A longshore.workers flower --conf=compose/flowerconfig.py`: Flower with the pages of runs.

`longshore flower` and the image load the same configuration without this file.
"""

from longshore.workers.flower_pages.config import *  # noqa: F403 - Flower reads the names of this file
