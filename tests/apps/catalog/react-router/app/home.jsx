export default function Home() {
  return <p>hello from react router</p>;
}
