"""What people write and read: references, specs, quantities, conditions, marks."""
