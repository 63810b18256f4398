// Texts of the page with less contrast than 4.5 to 1, each with its contrast.
const channel = value => value <= 10.31475 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
const numbers = colour => colour.match(/[\d.]+/g).map(Number);
const luminance = ([red, green, blue]) => 0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
const behind = element => {
  for (let one = element; one; one = one.parentElement) {
    const colour = numbers(getComputedStyle(one).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const hasText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim() !== "");
const texts = [...document.querySelectorAll("body *")].filter(one => hasText(one) && one.checkVisibility() && !one.closest("svg"));
if (texts.length < 10) return ["there is hardly a text"];
return texts.map(one => {
  const [text, ground] = [numbers(getComputedStyle(one).color), behind(one)].map(luminance);
  const contrast = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
  return contrast < 4.5 ? `${contrast.toFixed(2)}: ${one.outerHTML.slice(0, 120)}` : null;
}).filter(one => one !== null);
