"""Settings: params.yaml, typed; old names."""
