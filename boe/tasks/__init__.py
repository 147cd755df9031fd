"""What samplers are judged on."""
