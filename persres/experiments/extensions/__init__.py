"""Extensions of the paper. Each folder is one study: ``measure`` runs it, ``claims`` tests it, ``figures`` draws it."""
