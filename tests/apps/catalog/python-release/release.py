open("made", "w").write("made by release")
print("released")
