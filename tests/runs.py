"""What tests of training share."""

import json


def logged(workdir):
    """Rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
