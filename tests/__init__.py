"""The tests of nbllm; they mirror the package."""
