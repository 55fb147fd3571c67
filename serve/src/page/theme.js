// Applies the stored colour scheme before the page is painted.
const storedTheme = (() => {
  try {
    return localStorage.getItem('reel.theme');
  } catch {
    return null;
  }
})();
if (storedTheme === 'light' || storedTheme === 'dark') document.documentElement.dataset.theme = storedTheme;
