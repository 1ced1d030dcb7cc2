"""Files of guests: volumes, images, media and seeds, what stands on what, and how they come here."""
