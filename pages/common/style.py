"""What Streamlit cannot be told otherwise: in a narrow window columns wrap, instead of cutting words; and tables
offer no CSV, in which a spreadsheet would run what a data set has put there."""

NARROW = """<style>
button[aria-label^="Download as CSV"] { display: none }
[data-testid=stButtonGroup] > [data-rac] { flex-wrap: wrap }
@media (min-width: 641px) and (max-width: 1200px) {
  [data-testid=stMainBlockContainer] { padding-left: 2rem; padding-right: 2rem }
  [data-testid=stColumn]:has(> [data-testid=stVerticalBlock] > :only-child
    > :is([data-testid=stButton], [data-testid=stPopover], [data-testid=stDownloadButton]))
    { min-width: max-content }
  [data-testid=stColumn]:has(> [data-testid=stVerticalBlock] > :only-child
    > :is([data-testid=stSelectbox], [data-testid=stNumberInput], [data-testid=stTextInput])) { min-width: 7.5rem }
}
@media (min-width: 641px) {
  .st-key-select_layout > * > [data-testid=stHorizontalBlock] > [data-testid=stColumn] {
    min-width: 14rem;
    &:last-child { min-width: 28rem }
  }
}
</style>"""
"""Below 641 pixels Streamlit puts columns below each other."""
