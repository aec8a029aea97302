"""What the database holds, read: leaderboards, comparisons with their uncertainty, tables. No torch."""
