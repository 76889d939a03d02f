"""A whole study: its plan, its stages, its tables and the verdict."""
