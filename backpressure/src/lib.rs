//! Everything that may say 'not yet': byte credits, bounded edges, the budget sheet.
