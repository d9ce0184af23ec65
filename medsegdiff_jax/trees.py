"""Where two trees of settings, those of configs or of runs, differ."""

import json
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Fields, as node.field, that differ; a missing one is None, and a tuple a list, as in JSON."""
    one, other = (flatten_dict(json.loads(json.dumps(tree)), sep=".") for tree in (one, other))
    return [field for field in sorted(one.keys() | other) if one.get(field) != other.get(field)]
