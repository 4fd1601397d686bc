"""Where images come from: folders listed and checked once into an index; ImageNet's other validation sets."""
