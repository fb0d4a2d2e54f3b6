"""Steps of both sides to differences, the first divergence, the drift, and what could not show."""
