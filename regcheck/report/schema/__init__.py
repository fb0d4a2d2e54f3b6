"""What the JSON report holds, as types with a description for each key, and its JSON Schema."""
