"""How state is partitioned: the resolved DeepSpeed config, and the linter of such configs."""
