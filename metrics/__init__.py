"""What a mask is worth: reconstruction (IoU, Dice), distance of distributions (Frechet), and what a classifier sees."""
