"""Recipes, augmentation and training runs. Needs the extra [train]."""
