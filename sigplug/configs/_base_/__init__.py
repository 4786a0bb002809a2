"""Parts of configs."""
