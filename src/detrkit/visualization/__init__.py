"""Pictures: boxes on photos, curves."""
