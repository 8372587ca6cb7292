"""Programs of the world around that Tidegate works with: other people's engines. `make test-world` runs these tests."""
