"""Scores, generated text and predictions of a trained model, and grades by a judge model."""
