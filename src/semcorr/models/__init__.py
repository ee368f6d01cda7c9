"""Networks: backbones, heads, ways to tune, losses."""
