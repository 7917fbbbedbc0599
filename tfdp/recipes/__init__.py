"""Recipes that come with tfdp."""
