"""What is fitted where the catalogue explains nothing: other settings, options and inputs."""
