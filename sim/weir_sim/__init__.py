"""The simulator, and the mock engine built on its model."""
