"""How a report looks: tables, figures, the HTML page, words in English and Korean."""
