"""Is attention an explanation? Jain and Wallace, 2019; Wiegreffe and Pinter, 2019."""
