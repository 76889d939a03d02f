"""Prompt sets with disjoint roles, public benchmarks checked by SHA-256, chat data, and the embedded sets."""
