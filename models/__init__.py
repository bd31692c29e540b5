"""What work costs and what fits: models, data sheets, rooflines, sharing, memory, profiles."""
