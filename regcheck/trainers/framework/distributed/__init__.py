"""The framework side by several processes that share each batch."""
