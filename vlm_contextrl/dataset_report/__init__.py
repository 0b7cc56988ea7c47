"""A dataset folder to look at: `pairs stats`.

stats           counts, from the columns without the images
cards, charts   rows and numbers on the page
page            --html
contact_sheet   --sheet: a few rows as one picture
"""
